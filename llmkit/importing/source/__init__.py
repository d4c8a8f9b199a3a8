"""Files of other programs: tensors, settings, vocabularies."""
