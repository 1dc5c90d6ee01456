"""Tables, figures and a paper, from score rows alone."""
