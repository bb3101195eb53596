"""What a loaded model is asked before anybody else may ask it."""
