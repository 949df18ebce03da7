"""Files become text: plain text, Markdown, HTML and PDF, read by a process of their own that may fail.

A file is somebody else's, and perhaps made to do harm. So the bytes are parsed by Python alone (no native parser whose
fault would be a hole), in `worker.py`, a process with limits of memory and time, without network, and without the
server's environment; `extraction.py` starts it and takes its text, or tells what was wrong.
"""
