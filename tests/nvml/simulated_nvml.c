/* A simulated NVML (SONAME libnvidia-ml.so.1): the functions that the meters call, on GPUs that the
 * environment describes. The real nvidia-ml-py loads it, so that everything above the driver is real.
 *
 * Each setting may be chosen by host name: "HOST=VALUE|HOST=VALUE|VALUE". Of lists separated by ';' there is
 * an entry for each GPU; where there are fewer, the last one serves the others. S are seconds after the origin.
 *
 *   SIMULATED_NVML_ORIGIN       file that holds the CLOCK_MONOTONIC, in s, at which the programmes begin; until
 *                               it is there, and before that time, counters stand; without it: 0
 *   SIMULATED_NVML_POWER        a programme a GPU, separated by ';', which is also how many GPUs there are;
 *                               default "100": W; "W,S:W,..." steps; "saw:LOW:HIGH:PERIOD" a ramp again and
 *                               again; "pulse:LOW:HIGH:PERIOD:DUTY" high for the first DUTY of each period
 *   SIMULATED_NVML_SENSOR       "WINDOW:EVERY" a GPU: its power sensor sees the first WINDOW s of every EVERY s,
 *                               and tells their mean until the next; default: it sees every moment. The
 *                               energy counter always sees all
 *   SIMULATED_NVML_TICK_S       time between steps of the energy counters, in s (default 0.1)
 *   SIMULATED_NVML_TEMPERATURE  degrees Celsius a GPU, or "FROM:TO:S", which falls, or rises, until S
 *   SIMULATED_NVML_THROTTLE     bits of why clocks are held back, a GPU; power above a limit adds its own
 *   SIMULATED_NVML_PROCESSES    "GPU:PID" separated by ';': compute processes
 *   SIMULATED_NVML_MINORS       number of its device file a GPU (default: its index)
 *   SIMULATED_NVML_LIMITS       "LEAST:MOST:DEFAULT" in W a GPU (default "100:1000:1000")
 *   SIMULATED_NVML_STATE        file that remembers the power limits that were set, for all processes; a limit
 *                               holds the power down from the moment on at which it was set. Without the
 *                               file limits cannot be set
 *   SIMULATED_NVML_DRAW         file in which programs say what GPUs draw in place of their programmes (draws.c)
 *   SIMULATED_NVML_FAULTS       "GPU:KIND", "GPU:KIND@S" (from S on) or "GPU:KIND@S-S", separated by ';'
 *
 * KIND: lost, mig; still (a counter that stands), backwards (that jumps down), reset (that begins at 0 again);
 * mean_usage (nvmlDeviceGetPowerUsage gives the mean of a second, as on Ampere); limit_ignored (a limit is
 * accepted and not enforced). And no_SENSOR (not supported), SENSOR_denied (no permission), SENSOR_fails for
 * SENSOR: counter, power (in whatever way it is asked), instant, average (the field values), usage,
 * utilisation, memory, clock, throttle, temperature, processes, limit, setting (to set a limit).
 *
 * Built with -DWITHOUT_COUNTER, _FIELDS, _EVENT_REASONS or _PROCESSES_V3 the library lacks those symbols, as
 * drivers of old did.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simulated.h"

enum { POWER_AVERAGE = 185, POWER_INSTANT = 186, TYPE_UNSIGNED_INT = 1, POWER_CAP_REASON = 4, CLOCK_SM = 1 };

typedef struct { double window_s, every_s; } Gpu;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Rates;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int instance, compute_instance; } Process;
typedef struct {
    unsigned int field, scope;
    long long timestamp_us, latency_us;
    unsigned int type, code;
    union { double floating; unsigned int whole; unsigned long long wide; } value;
} FieldValue;

static Gpu gpus[MAX_GPUS];
static int gpu_count;
static double tick_s;

int index_of(const void *handle) { return (int)((const Gpu *)handle - gpus); }

int nvmlInitWithFlags(unsigned int flags) {
    char part[4096];
    (void)flags;
    tick_s = atof(setting("TICK_S", "0.1"));
    gpu_count = 1;
    for (const char *letter = setting("POWER", "100"); *letter; letter++) gpu_count += *letter == ';';
    if (gpu_count > MAX_GPUS) gpu_count = MAX_GPUS;
    for (int i = 0; i < gpu_count; i++) {
        setting_of("POWER", "100", i, part, sizeof part);
        read_programme(i, part);
        setting_of("SENSOR", "", i, part, sizeof part);
        if (sscanf(part, "%lf:%lf", &gpus[i].window_s, &gpus[i].every_s) != 2) gpus[i].every_s = 0;
    }
    read_faults();
    find_limits();
    find_draws();
    return OK;
}

int nvmlShutdown(void) { return OK; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "0.0 (simulated)");
    return OK;
}

/* --- which GPUs there are --- */

int nvmlDeviceGetCount_v2(unsigned int *count) { return *count = gpu_count, OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **gpu) {
    if ((int)index >= gpu_count) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return OK;
}

void uuid_of(int gpu, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%08x-0000-0000-0000-%012d", host_number(), gpu);
}

int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned int length) {
    return uuid_of(index_of(gpu), uuid, length), OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    for (int i = 0; i < gpu_count; i++) {
        char own[80];
        uuid_of(i, own, sizeof own);
        if (!strcmp(own, uuid)) return *gpu = &gpus[i], OK;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(void *gpu, unsigned int *index) { return *index = index_of(gpu), OK; }

int nvmlDeviceGetMinorNumber(void *gpu, unsigned int *number) {
    char part[64], index[16];
    snprintf(index, sizeof index, "%d", index_of(gpu));
    setting_of("MINORS", index, index_of(gpu), part, sizeof part);
    return *number = (unsigned int)atoi(part), OK;
}

int nvmlDeviceGetName(void *gpu, char *name, unsigned int length) {
    (void)gpu;
    snprintf(name, length, "Simulated GPU");
    return OK;
}

int nvmlDeviceGetMigMode(void *gpu, unsigned int *current, unsigned int *pending) {
    if (!has_fault(index_of(gpu), "mig", NULL)) return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *gpu, unsigned int *count, Process *processes) {
    char text[4096], *rest = text, *entry;
    unsigned int found = 0, room = *count;
    int which, state = state_of(index_of(gpu), "processes");
    if (state != OK) return state;
    snprintf(text, sizeof text, "%s", setting("PROCESSES", ""));
    while ((entry = strsep(&rest, ";"))) {
        Process process = {0, 1 << 30, ~0u, ~0u};
        if (sscanf(entry, "%d:%u", &which, &process.pid) != 2 || which != index_of(gpu)) continue;
        if (found < room) processes[found] = process;
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

#ifndef WITHOUT_PROCESSES_V3
int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned int *count, Process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v2(gpu, count, processes);
}
#endif

/* --- joules and watts --- */

/* What is drawn at a time: what is wanted, held down by the limit of that time. */
static double power_w(int gpu, double at_s) {
    const Limit *limits;
    int count = limits_of(gpu, &limits);
    double power = wanted_w(gpu, at_s), limit_w = limits[0].limit_w;
    for (int i = 1; i < count && limits[i].from_s <= at_s; i++) limit_w = limits[i].limit_w;
    return power < limit_w ? power : limit_w;
}

/* Joules from the origin to a time: exact, limit by limit. */
static double energy_j(int gpu, double until_s) {
    const Limit *limits;
    int count = limits_of(gpu, &limits);
    double joules = 0;
    for (int i = 0; i < count && limits[i].from_s < until_s; i++) {
        double to_s = i + 1 < count && limits[i + 1].from_s < until_s ? limits[i + 1].from_s : until_s;
        joules += wanted_j(gpu, limits[i].from_s, to_s, limits[i].limit_w);
    }
    return joules;
}

static double mean_w(int gpu, double from_s, double to_s) {
    return to_s > from_s ? (energy_j(gpu, to_s) - energy_j(gpu, from_s)) / (to_s - from_s) : power_w(gpu, to_s);
}

/* What the sensor tells at a time: of a part-time one, the mean over the last window that it has seen. */
static double seen_w(int gpu, double at_s) {
    const Gpu *own = &gpus[gpu];
    if (!own->every_s) return power_w(gpu, at_s);
    long long windows = (long long)((at_s - own->window_s) / own->every_s);
    if (at_s < own->window_s) return power_w(gpu, 0);
    return mean_w(gpu, windows * own->every_s, windows * own->every_s + own->window_s);
}

static double mean_of_a_second_w(int gpu, double at_s) { return mean_w(gpu, at_s > 1 ? at_s - 1 : 0, at_s); }

#ifndef WITHOUT_COUNTER
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy_mj) {
    int gpu = index_of(handle), state = state_of(gpu, "counter");
    double base_j = 1e6 * (gpu + 1); /* the driver was loaded long ago */
    double at_s = (long long)(elapsed_s() / tick_s) * tick_s, began_s;
    if (state != OK) return state;
    if (has_fault(gpu, "backwards", NULL)) base_j = 1e3;
    if (has_fault(gpu, "still", &began_s)) at_s = began_s;
    if (has_fault(gpu, "reset", &began_s)) base_j = -energy_j(gpu, began_s);
    double joules = base_j + energy_j(gpu, at_s);
    *energy_mj = (unsigned long long)(joules > 0 ? joules * 1e3 : 0);
    return OK;
}
#endif

int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power_mw) {
    int gpu = index_of(handle), state = state_of(gpu, "power");
    int is_mean = has_fault(gpu, "mean_usage", NULL);
    double at_s = elapsed_s();
    if (state == OK) state = state_of(gpu, "usage");
    *power_mw = (unsigned int)((is_mean ? mean_of_a_second_w(gpu, at_s) : seen_w(gpu, at_s)) * 1e3 + 0.5);
    return state;
}

#ifndef WITHOUT_FIELDS
int nvmlDeviceGetFieldValues(void *handle, int count, FieldValue *values) {
    int gpu = index_of(handle);
    double at_s = elapsed_s();
    if (state_of(gpu, "any") != OK) return state_of(gpu, "any");
    for (int i = 0; i < count; i++) {
        FieldValue *own = &values[i];
        int is_instant = own->field == POWER_INSTANT, state = state_of(gpu, "power");
        if (state == OK) state = state_of(gpu, is_instant ? "instant" : "average");
        if (!is_instant && own->field != POWER_AVERAGE) state = NOT_SUPPORTED;
        own->code = state;
        own->type = TYPE_UNSIGNED_INT;
        own->timestamp_us = (long long)(monotonic_s() * 1e6);
        if (state != OK) continue;
        own->value.whole = (unsigned int)((is_instant ? seen_w(gpu, at_s) : mean_of_a_second_w(gpu, at_s)) * 1e3 + 0.5);
    }
    return OK;
}
#endif

/* --- everything else --- */

int nvmlDeviceGetUtilizationRates(void *gpu, Rates *rates) {
    *rates = (Rates){75, 40};
    return state_of(index_of(gpu), "utilisation");
}

int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    *memory = (Memory){80ULL << 30, 60ULL << 30, 20ULL << 30};
    return state_of(index_of(gpu), "memory");
}

int nvmlDeviceGetClockInfo(void *gpu, int clock, unsigned int *mhz) {
    *mhz = clock == CLOCK_SM ? 1410 : 1593;
    return state_of(index_of(gpu), "clock");
}

int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned int *celsius) {
    char text[256];
    double from, to, over_s, at_s = elapsed_s();
    (void)sensor;
    setting_of("TEMPERATURE", "55", index_of(gpu), text, sizeof text);
    if (sscanf(text, "%lf:%lf:%lf", &from, &to, &over_s) != 3) from = to = atof(text), over_s = 1;
    *celsius = (unsigned int)(at_s < over_s ? from + (to - from) * at_s / over_s : to);
    return state_of(index_of(gpu), "temperature");
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    char text[64];
    int gpu = index_of(handle);
    double at_s = elapsed_s();
    setting_of("THROTTLE", "0", gpu, text, sizeof text);
    *reasons = strtoull(text, NULL, 0) | (power_w(gpu, at_s) < wanted_w(gpu, at_s) ? POWER_CAP_REASON : 0);
    return state_of(gpu, "throttle");
}

#ifndef WITHOUT_EVENT_REASONS
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(handle, reasons);
}
#endif
