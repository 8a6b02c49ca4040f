"""What people read: tensorboard (curves), pictures (predictions), scores (tables), progress (bars), accounts (what a
program is about to do, and what it made).
"""
