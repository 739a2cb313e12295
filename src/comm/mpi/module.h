/* What libshoal-mpi.so gives the program: the few calls of MPI that a group needs. The module alone
 * is linked with MPI, so that one program runs with and without it (comm/group_mpi.c loads it).
 * All calls come from one thread at a time. They return 0 or a code that `text` puts in words. */
#ifndef SH_COMM_MPI_MODULE_H
#define SH_COMM_MPI_MODULE_H

#include <stddef.h>

enum { SH_MPI_MODULE = 1 }; /* counts changes of this struct */

typedef struct sh_mpi_module {
    int version; /* SH_MPI_MODULE of when it was built; stays the first field */
    int (*start)(int *rank, int *n_rank);
    void (*stop)(void);
    /* This rank's number among the ranks on its host, how many they are, and what each of them gave
     * as mine (n bytes): all (*n_here, n), to be freed by the caller. */
    int (*share)(const void *mine, int n, int *here, int *n_here, void **all);
    /* Begin to send, or to receive exactly, n bytes; p is in use until `test` says so. Messages
     * between two ranks with the same tag keep their order. */
    int (*send)(const void *p, size_t n, int to, int tag);
    int (*recv)(void *p, size_t n, int from, int tag);
    int (*test)(int *done);          /* whether all that was begun has been done */
    void (*drop)(void);              /* gives up what was begun and has not been done */
    int (*peek)(int tag, int *from); /* a rank whose message with this tag waits; -1: none */
    void (*text)(int code, char *out, size_t cap);
} sh_mpi_module;

/* The one symbol of the module. */
#define SH_MPI_SYMBOL "shoal_mpi_module"
extern const sh_mpi_module shoal_mpi_module;

#endif
