"""Calls experiments/main.py in a process with several simulated devices: once per list of arguments in JSON."""

import json
import sys

from commands import main

if __name__ == "__main__":  # environment workers import this file anew
    for arguments in json.loads(sys.argv[1]):
        if status := main(*arguments):
            sys.exit(status)
