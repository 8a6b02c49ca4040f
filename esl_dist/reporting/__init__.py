"""What people read: tensorboard (curves), tables (scores), progress (bars)."""
