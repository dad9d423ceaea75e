"""How good the pictures are: what tiny-shapes draws when asked, and what a tune teaches it."""
