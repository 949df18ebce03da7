"""The demonstration behind `make demo`: facts hidden in a long text, read once over REST, asked about three times.

errors.py   what can go wrong before an answer can be judged
text.py     the long text, cut or repeated to a wanted number of tokens
facts.py    what is hidden in it, where, and whether an answer tells it
process.py  the server as a child process that always ends
asking.py   a question, and how long its answer took
metrics.py  Prometheus text -> numbers
excerpt.py  the part of a passage that is worth a line
screen.py   all that is printed; progress.py how far the reading is
tour.py     the phases in their order
cli.py      options and exit codes
"""
