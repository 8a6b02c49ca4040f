"""The command `esl-dist`: which command is which program, its help, and what a shell completes.

Words behind a command's name are those of the program, and read where those of the scripts are (`command_line`).
"""
