"""A network's predictions of pictures, shared by the ranks: for validation and of the use of trained networks."""
