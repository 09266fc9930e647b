"""One run, or a sweep of them: settings, presets, building, running, recording."""
