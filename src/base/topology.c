/* The cores of this process; apart from cpu.c, which other builds take without hwloc. */
#define _GNU_SOURCE
#include <hwloc.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "base/cpu.h"

int sh_cpu_cores(int *cpu, int max)
{
    int n = 0;
    hwloc_topology_t topo;
    /* Where there is no /sys (a chroot, a small container), hwloc complains on stderr. */
    bool known = access("/sys/devices/system/cpu/cpu0/topology", R_OK | X_OK) == 0;
    if (known && hwloc_topology_init(&topo) == 0) {
        hwloc_topology_set_all_types_filter(topo, HWLOC_TYPE_FILTER_KEEP_NONE);
        hwloc_topology_set_type_filter(topo, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
        if (hwloc_topology_load(topo) == 0) {
            hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(topo);
            hwloc_cpuset_t mine = hwloc_bitmap_alloc();
            hwloc_get_cpubind(topo, mine, HWLOC_CPUBIND_PROCESS);
            hwloc_bitmap_and(mine, mine, allowed);
            hwloc_obj_t core = NULL;
            while (n < max && (core = hwloc_get_next_obj_by_type(topo, HWLOC_OBJ_CORE, core))) {
                hwloc_cpuset_t set = hwloc_bitmap_dup(core->cpuset);
                hwloc_bitmap_and(set, set, mine);
                int first = hwloc_bitmap_first(set);
                if (first >= 0) cpu[n++] = first;
                hwloc_bitmap_free(set);
            }
            hwloc_bitmap_free(mine);
        }
        hwloc_topology_destroy(topo);
    }
    if (n == 0) { /* no topology to be had: what the scheduler says */
        cpu_set_t set;
        if (sched_getaffinity(0, sizeof set, &set) == 0)
            for (int i = 0; i < CPU_SETSIZE && n < max; i++)
                if (CPU_ISSET(i, &set)) cpu[n++] = i;
    }
    if (n == 0) cpu[n++] = -1;
    return n;
}

void sh_cpu_bind(int cpu)
{
    if (cpu < 0 || cpu >= CPU_SETSIZE) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* a wish, not a need */
}
