/* libshoal-mpi.so: the calls of MPI behind comm/group_mpi.c. See module.h. */
#include "comm/mpi/module.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

/* A count of MPI is an int: longer messages go in pieces. */
enum { MAX_BEGUN = 1024, MAX_BYTES = 1 << 30 };

/* MPI itself is one for each process. */
static MPI_Comm comm = MPI_COMM_NULL;
static MPI_Request begun[MAX_BEGUN];
static int is_recv[MAX_BEGUN], n_begun;

static int start(int *rank, int *n_rank)
{
    int have, code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &have);
    if (code) return code;
    if ((code = MPI_Comm_dup(MPI_COMM_WORLD, &comm))) return code;
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    if ((code = MPI_Comm_rank(comm, rank))) return code;
    return MPI_Comm_size(comm, n_rank);
}

static void stop(void)
{
    MPI_Comm_free(&comm);
    MPI_Finalize();
}

static int share(const void *mine, int n, int *here, int *n_here, void **all)
{
    MPI_Comm host;
    int code = MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    if (code) return code;
    MPI_Comm_rank(host, here);
    MPI_Comm_size(host, n_here);
    if (!(*all = calloc((size_t)*n_here, (size_t)n))) return MPI_ERR_NO_MEM;
    code = MPI_Allgather(mine, n, MPI_BYTE, *all, n, MPI_BYTE, host);
    MPI_Comm_free(&host);
    return code;
}

static int send(const void *p, size_t n, int to, int tag)
{
    do {
        size_t m = n < MAX_BYTES ? n : MAX_BYTES;
        if (n_begun == MAX_BEGUN) return MPI_ERR_REQUEST;
        is_recv[n_begun] = 0;
        int code = MPI_Isend(p, (int)m, MPI_BYTE, to, tag, comm, &begun[n_begun++]);
        if (code) return code;
        p = (const char *)p + m;
        n -= m;
    } while (n);
    return MPI_SUCCESS;
}

static int recv(void *p, size_t n, int from, int tag)
{
    do {
        size_t m = n < MAX_BYTES ? n : MAX_BYTES;
        if (n_begun == MAX_BEGUN) return MPI_ERR_REQUEST;
        is_recv[n_begun] = 1;
        int code = MPI_Irecv(p, (int)m, MPI_BYTE, from, tag, comm, &begun[n_begun++]);
        if (code) return code;
        p = (char *)p + m;
        n -= m;
    } while (n);
    return MPI_SUCCESS;
}

static int test(int *done)
{
    int code = MPI_Testall(n_begun, begun, done, MPI_STATUSES_IGNORE);
    if (*done) n_begun = 0;
    return code;
}

static void drop(void)
{
    for (int i = 0; i < n_begun; i++) {
        if (begun[i] == MPI_REQUEST_NULL) continue;
        if (is_recv[i]) MPI_Cancel(&begun[i]);
        MPI_Request_free(&begun[i]);
    }
    n_begun = 0;
}

static int peek(int tag, int *from)
{
    int there = 0;
    MPI_Status status;
    int code = MPI_Iprobe(MPI_ANY_SOURCE, tag, comm, &there, &status);
    *from = there ? status.MPI_SOURCE : -1;
    return code;
}

static void text(int code, char *out, size_t cap)
{
    char s[MPI_MAX_ERROR_STRING];
    int n;
    if (MPI_Error_string(code, s, &n) == MPI_SUCCESS)
        snprintf(out, cap, "%s", s);
    else
        snprintf(out, cap, "MPI error %d", code);
}

const sh_mpi_module shoal_mpi_module = {
    .version = SH_MPI_MODULE,
    .start = start,
    .stop = stop,
    .share = share,
    .send = send,
    .recv = recv,
    .test = test,
    .drop = drop,
    .peek = peek,
    .text = text,
};
