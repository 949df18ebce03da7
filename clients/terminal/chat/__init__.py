"""`cairn chat`: a conversation in a session.

loop.py          lines in, answers out, until the end
conversation.py  the session that is talked in, its last answer, and what may be done with it
commands.py      what begins with a slash
prompt.py        where lines come from: an editor with history on a terminal, else standard input
picker.py        which session to go on in
"""
