"""The group as systemd units: one template a service, written from the topology and the settings.

`*.in` are the units; $names in them are filled in by install.py.
"""
