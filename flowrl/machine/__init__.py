"""The machine: files, signals, devices, hosts, memory, packages; nothing about learning."""
