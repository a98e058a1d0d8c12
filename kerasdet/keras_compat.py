"""Private hooks of Keras and TensorFlow."""
