"""The dashboard: pictures with their boxes in the browser, lines drawn there, charts, and an API. One optional process.

The process' loop (viewer.py) takes pictures from the rings and follows what fusion publishes; a thread (web.py) answers
browsers. They meet in known.py and live.py.
"""
