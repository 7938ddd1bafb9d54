/* What the files of the simulated NVML share. simulated_nvml.c says what it is and how it is told. */
#ifndef SIMULATED_H
#define SIMULATED_H

/* NVML's return codes. */
enum {
    OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_STEPS = 64 };

/* settings.c */

/* The value of SIMULATED_NVML_<name> for this host; `otherwise` where there is none. */
const char *setting(const char *name, const char *otherwise);
/* The part of such a value that is GPU `index`'s, of those separated by ';'; the last one serves all after it. */
void setting_of(const char *name, const char *otherwise, int index, char *part, int size);
/* A number for this host: 0 unless programmes are chosen by host, so that UUIDs differ between nodes. */
unsigned int host_number(void);
void read_faults(void);
/* Whether a fault of a kind holds for a GPU now; *from_s is when it began. */
int has_fault(int gpu, const char *kind, double *from_s);
/* The return code of a sensor: of faults `lost`, `no_SENSOR`, `SENSOR_denied` and `SENSOR_fails`. */
int state_of(int gpu, const char *sensor);

/* programme.c */

void read_programme(int gpu, const char *text);
/* Time in s since the programmes began, 0 before; and that of a CLOCK_MONOTONIC in s. */
double elapsed_s(void);
double since_origin_s(double monotonic_s);
double monotonic_s(void);
/* Power of the programme in W at a time after the origin if nothing were to limit it. */
double unlimited_w(int gpu, double at_s);
/* Joules of the programme from the origin to a time after it if a limit in W had always held. */
double limited_j(int gpu, double until_s, double limit_w);

/* draws.c */

/* Find the file that says what GPUs draw. */
void find_draws(void);
/* Power in W at a time after the origin, drawn or else of the programme, if nothing were to limit it. */
double wanted_w(int gpu, double at_s);
/* Joules from a time after the origin to another if a limit in W held all the time. */
double wanted_j(int gpu, double from_s, double to_s, double limit_w);

/* limits.c */

typedef struct { double from_s, limit_w; } Limit;
/* Find the file that remembers limits. */
void find_limits(void);
/* The limits that were enforced on a GPU, in order, the first from 0 on; returns how many. */
int limits_of(int gpu, const Limit **limits);

/* simulated_nvml.c */

int index_of(const void *handle);
/* The UUID of a GPU of this host. */
void uuid_of(int gpu, char *uuid, unsigned int length);
#endif
