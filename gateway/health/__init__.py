"""What is learnt about endpoints while requests go to them."""
