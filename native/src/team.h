// One parallel region on the team of threads that base.cpp was handed.
#pragma once

// What each thread runs: the argument, its number, and how many there are.
typedef void (*lk_body)(void* argument, int thread, int threads);

extern "C" void lk_parallel(lk_body body, void* argument);
