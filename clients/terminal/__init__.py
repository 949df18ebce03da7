"""The command `cairn`: chat with a server, ask about a file, look after sessions, measure; all of it over HTTP.

cli.py         from the command line to an exit code; hands `serve`, `keys` and `check` over to the server
parser.py      arguments, and the help that teaches them; completion.py  Tab in bash, zsh and fish
exits.py       exit codes; connecting.py  the client that the options ask for
screen.py      what is printed: tables, passages, text that a terminal must not obey; reading.py  progress of long work
markdown.py    an answer in Markdown, rendered while it comes
asking.py      `cairn ask`; remembered.py  which session holds which file
sessions.py    `cairn sessions …`
load.py        `cairn bench`; report.py  its table
chat/          `cairn chat`: the loop, the commands, the prompt, the choice of a session
"""
