"""Pages for people: what each optimization gained (gains.py), one frame's way through the processes (traces.py)."""
