"""The files of NeMo 1: `.nemo` archives and Lightning's `.ckpt` files, whatever model is in them."""
