"""The history of a group: intervals, tables and files of it."""
