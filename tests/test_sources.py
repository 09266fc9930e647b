import contextlib

import pytest
from ogbench_files import Host, packed

from flowrl import tasks
from flowrl.collection import collect
from flowrl.errors import UserError
from flowrl.machine import files
from flowrl.tasks import download, ogbench, sources

NAME = "pointmaze-medium-stitch"
ENV = tasks.parse(NAME)
FILE = f"{NAME}-v0.npz"


@pytest.fixture
def host():
    served = Host()
    yield served
    served.close()


@pytest.fixture
def mirror():
    served = Host()
    yield served
    served.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no host in the world, for every test."""
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(ogbench, "HOSTS", ())
    return tmp_path / "cache"


@pytest.fixture
def collected(cache, monkeypatch):
    """Stands in for a collection; counts its calls."""
    calls = []

    def collect_here(recipe, out, *, workers=None):
        calls.append((recipe.name, workers))
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).write_bytes(packed())

    monkeypatch.setattr(collect, "collect", collect_here)
    return calls


@pytest.fixture
def forbidden(monkeypatch):
    monkeypatch.setattr(collect, "collect", lambda *_, **__: pytest.fail("collected"))


def leftovers(cache):
    return sorted(p.name for p in (cache / "official").iterdir() if not p.name.endswith(".lock") and p.name != FILE)


# ---------------------------------------------------------------------------------------------------- download


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("data", ["auto", "official"])
def test_download_is_kept_as_official_and_asked_for_once(data, host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    source = ENV.locate(data)
    assert source.origin == "official"
    assert source.path == cache / "official" / FILE
    assert source.path.read_bytes() == host.body
    assert source.sha256 == files.sha256(source.path)
    assert ENV.locate(data) == source
    assert [path for path, *_ in host.asked] == [f"/{FILE}"]
    assert leftovers(cache) == []


@pytest.mark.usefixtures("forbidden")
def test_interrupted_download_continues_with_a_range(host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    host.cut = 700
    with pytest.raises(UserError, match=rf"ended after 700 of {len(host.body)} bytes; another try continues"):
        ENV.locate("official")
    assert not (cache / "official" / FILE).exists()
    host.cut = 300
    with pytest.raises(UserError, match="ended after 1000 of"):
        ENV.locate("official")
    host.cut = None
    assert ENV.locate("official").path.read_bytes() == host.body
    assert [asked[1:] for asked in host.asked] == [
        (None, None),
        ("bytes=700-", '"one"'),
        ("bytes=1000-", '"one"'),
    ]
    assert leftovers(cache) == []


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("change", ["no ranges", "another version", "no mark"])
def test_download_starts_again_where_it_cannot_continue(change, host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    host.cut = 700
    host.etag = "" if change == "no mark" else host.etag
    with pytest.raises(UserError, match="ended after 700"):
        ENV.locate("official")
    host.cut = None
    if change == "no ranges":
        host.ranges = False
    if change == "another version":
        host.body, host.etag = packed(n=50), '"two"'
    assert ENV.locate("official").path.read_bytes() == host.body
    assert leftovers(cache) == []


@pytest.mark.usefixtures("forbidden")
def test_a_shorter_new_version_does_not_keep_the_old_end(host, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    host.cut = len(host.body) - 1
    with pytest.raises(UserError, match="ended after"):
        ENV.locate("official")
    host.body, host.etag, host.cut = packed(n=20), '"two"', None
    assert ENV.locate("official").path.read_bytes() == host.body


@pytest.mark.usefixtures("forbidden")
def test_a_wrong_range_is_not_appended(host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    host.cut = 700
    with pytest.raises(UserError, match="ended after 700"):
        ENV.locate("official")
    host.cut, host.lie = None, True
    with pytest.raises(UserError, match="another range"):
        ENV.locate("official")
    host.lie = False
    assert ENV.locate("official").path.read_bytes() == host.body


@pytest.mark.usefixtures("forbidden")
def test_a_download_killed_before_its_renaming_is_finished(host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    monkeypatch.setattr(download, "check_npz", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ENV.locate("official")
    monkeypatch.undo()
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    monkeypatch.setenv("FLOWRL_DATA", str(cache))
    assert ENV.locate("official").path.read_bytes() == host.body
    assert host.asked[-1][1] == f"bytes={len(host.body)}-"


@pytest.mark.usefixtures("forbidden")
def test_the_mirror_serves_where_the_first_host_fails_and_parts_never_mix(host, mirror, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url, mirror.url))
    mirror.body = packed(n=60)
    host.cut = 700
    source = ENV.locate("official")
    assert source.path.read_bytes() == mirror.body
    assert mirror.asked == [(f"/{FILE}", None, None)]
    assert leftovers(cache) == []


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": b"<html>sign in</html>", "kind": "text/html; charset=utf-8"}, "a web page, not a dataset"),
        ({"body": b"<html>sign in</html>"}, "not a whole .npz file"),
        ({"body": packed()[:-300]}, "not a whole .npz file"),
        ({"body": packed().replace(packed()[400:410], b"0123456789")}, "not a whole .npz file"),
        ({"body": packed(actions=None)}, "lacks actions.npy"),
        ({"status": 503}, "the server answered 503"),
        ({"status": 404}, "the server answered 404"),
    ],
)
def test_what_is_no_dataset_never_enters_the_cache(changes, reason, host, cache, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    for name, value in changes.items():
        setattr(host, name, value)
    with pytest.raises(UserError, match=reason) as raised:
        ENV.locate("official")
    assert "--data=collected" in str(raised.value)
    assert "--data=PATH" in str(raised.value)
    assert [name for name in leftovers(cache) if name.endswith(".part")] == []
    assert not (cache / "official" / FILE).exists()
    good = Host()
    with contextlib.closing(good):
        monkeypatch.setattr(ogbench, "HOSTS", (good.url,))
        assert ENV.locate("official").path.read_bytes() == good.body


# ------------------------------------------------------------------------------------------------------ locate


def test_auto_collects_where_no_host_answers(cache, collected, capsys, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", ("http://127.0.0.1:9", "http://127.0.0.1:9/mirror"))
    source = ENV.locate("auto", workers=2)
    said = capsys.readouterr().err
    assert "Connection refused" in said
    assert f"collecting {NAME} here instead" in said
    assert collected == [(NAME, 2)]
    assert source.origin == "collected"
    assert source.path == cache / "collected" / FILE
    assert not (cache / "official" / FILE).exists()
    with pytest.raises(UserError, match=r"cannot download.*Connection refused.*--data=collected.*--data=PATH"):
        ENV.locate("official")


@pytest.mark.usefixtures("forbidden")
def test_official_never_means_collected(cache, monkeypatch):
    (cache / "collected").mkdir(parents=True)
    (cache / "collected" / FILE).write_bytes(packed())
    monkeypatch.setattr(ogbench, "HOSTS", ("http://127.0.0.1:9",))
    with pytest.raises(UserError, match="cannot download"):
        ENV.locate("official")


def test_auto_prefers_official_then_collected_then_the_network(cache, host, collected, monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", (host.url,))
    first = ENV.locate("collected")
    assert (first.origin, host.asked, len(collected)) == ("collected", [], 1)
    second = ENV.locate("auto")
    assert (second.path, host.asked, len(collected)) == (first.path, [], 1)
    assert "not the official download" in second.detail
    assert "--data=official" in second.detail
    assert "--data=official" not in first.detail
    assert ENV.locate("official").origin == "official"
    assert ENV.locate("auto").origin == "official"
    assert ENV.locate("collected").origin == "collected"
    assert len(host.asked) == 1


def test_what_cannot_be_collected_is_not_recommended(monkeypatch):
    monkeypatch.setattr(ogbench, "HOSTS", ("http://127.0.0.1:9",))
    for data in ("auto", "official"):
        with pytest.raises(UserError, match=r"cannot download.*--data=PATH") as raised:
            tasks.parse("humanoidmaze-large-navigate").locate(data)
        assert "--data=collected" not in str(raised.value)
    with pytest.raises(UserError, match="cannot collect humanoidmaze-large-navigate yet"):
        tasks.parse("humanoidmaze-large-navigate").locate("collected")


def test_a_file_or_its_folder_can_be_given(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(packed())
    for data in (str(path), str(tmp_path)):
        source = ENV.locate(data)
        assert source == (path, "file", f"file {path}", files.sha256(path))


def test_a_given_file_that_flowrl_collected_says_so(tmp_path):
    path = collect.collect(ENV.recipe(), tmp_path, episodes=3, workers=1)
    source = ENV.locate(str(tmp_path))
    assert source.origin == "file"
    assert "collected by flowrl (not the official download), 3 of 5000 episodes, seed 0" in source.detail
    path.write_bytes(packed())
    assert ENV.locate(str(path)).detail == f"file {path}"


def test_a_wrong_path_names_the_expected_file(tmp_path):
    with pytest.raises(UserError, match=FILE):
        ENV.locate(str(tmp_path))
    with pytest.raises(UserError, match="did you mean official"):
        ENV.locate("oficial")
    with pytest.raises(UserError, match="no file"):
        ENV.locate(str(tmp_path / "absent.npz"))


def test_a_path_that_is_misspelt_names_the_one_that_may_be_meant(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "pendulum.npz").write_bytes(packed())
    env = tasks.parse("Pendulum-v1")
    for wrong, meant in (("dataset/pendulum.npz", "datasets"), ("datasets/pendulm.npz", "datasets/pendulum.npz")):
        with pytest.raises(UserError, match=f"there is no file .*; did you mean {tmp_path / meant}\\?$"):
            env.locate(str(tmp_path / wrong))
    with pytest.raises(UserError, match=r"there is no file .*; .* has pendulum.npz$"):
        env.locate(str(tmp_path / "datasets"))
    with pytest.raises(UserError, match="give the path of a file or folder that exists, or one of auto, official, col"):
        env.locate(str(tmp_path / "elsewhere" / "x.npz"))
    with pytest.raises(UserError, match="did you mean none"):
        env.locate("nome")
    with pytest.raises(UserError, match="--data= is empty"):
        env.locate("")


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "file"))
    for data in ("official", "collected", "auto"):
        with pytest.raises(UserError, match=r"datasets cannot be kept in .*; set FLOWRL_DATA to a folder"):
            ENV.locate(data)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("FLOWRL_DATA")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(sources.cache_root()) == "/home/someone/.cache/flowrl"


FAULTS = {
    "flowrl/tasks/sources.py": [
        ("if near:\n", "if False:\n", "test_a_path_that_is_misspelt_names_the_one_that_may_be_meant"),
        (
            "; set FLOWRL_DATA to a folder",
            "; choose a folder",
            "test_a_cache_that_cannot_be_written_names_the_variable",
        ),
    ],
}
