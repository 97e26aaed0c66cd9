"""The networks of the paper, one file each; `rohydr.RoHyDR` assembles them."""
