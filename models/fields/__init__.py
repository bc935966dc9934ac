"""Vector fields v(t, x): what a continuous flow follows."""
