"""What a finished video says of itself: its manifest, whole enough to make it again, and a signature if wanted.

Imports no torch.
"""
