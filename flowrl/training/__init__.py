"""Training: updates, the loop, acting, evaluation, checkpoints; values in, values out, no folders."""
