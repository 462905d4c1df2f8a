using __half = _Float16;  // for g++, in place of CUDA's header
