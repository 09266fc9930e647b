"""What a program does before all else, its imports included, which take seconds."""

from flowrl.machine.signals import abrupt
from flowrl.machine.terminal import open_closed

open_closed()
abrupt()
