"""The kinds of operations of a graph in float64: what ggml computes, and how far float32 may be."""
