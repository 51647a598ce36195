"""What every training stands on: recipes as data, images on their way into a detector, hooks, resumption."""
