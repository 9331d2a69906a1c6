// A function without a body, as getAuxv, is allowed beside assembly only.
