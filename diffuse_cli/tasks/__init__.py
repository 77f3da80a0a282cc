"""What people do with a model: pictures that begin with a picture, the work of one command each."""
