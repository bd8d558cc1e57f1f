"""Training and replacing the assets that the package ships."""
