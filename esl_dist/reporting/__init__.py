"""What people read: tensorboard (curves), pictures (predictions), tables (scores), progress (bars)."""
