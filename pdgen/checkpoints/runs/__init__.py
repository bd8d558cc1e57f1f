"""What a training run leaves in its workdir, as others read it."""
