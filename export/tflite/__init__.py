"""TFLite files, for LiteRT and MediaPipe."""
