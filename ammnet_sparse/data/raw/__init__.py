"""Files of other forms (SSCNet's raw ones, pickles), and the set that is made from them."""
