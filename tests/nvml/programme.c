/* Power programmes: what a GPU would draw at any time, and the joules of it, both in closed form. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "simulated.h"

typedef enum { STEPS, SAWTOOTH, PULSES } Kind;
typedef struct { double start_s, power_w; } Step;
typedef struct {
    Kind kind;
    int steps;
    Step step[MAX_STEPS];
    double low_w, high_w, period_s, duty;
} Programme;

static Programme programmes[MAX_GPUS];
static double origin_s;
static int has_begun;

void read_programme(int gpu, const char *text) {
    Programme *own = &programmes[gpu];
    char copy[4096], *rest = copy, *part;
    memset(own, 0, sizeof *own);
    if (sscanf(text, "saw:%lf:%lf:%lf", &own->low_w, &own->high_w, &own->period_s) == 3) {
        own->kind = SAWTOOTH;
        return;
    }
    if (sscanf(text, "pulse:%lf:%lf:%lf:%lf", &own->low_w, &own->high_w, &own->period_s, &own->duty) == 4) {
        own->kind = PULSES;
        return;
    }
    snprintf(copy, sizeof copy, "%s", text);
    while ((part = strsep(&rest, ",")) && own->steps < MAX_STEPS) {
        Step *step = &own->step[own->steps++];
        if (sscanf(part, "%lf:%lf", &step->start_s, &step->power_w) != 2) *step = (Step){0, atof(part)};
    }
}

double monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

double since_origin_s(double at_s) {
    if (!has_begun) {
        const char *path = setting("ORIGIN", "");
        FILE *file = *path ? fopen(path, "r") : NULL;
        has_begun = !*path || (file && fscanf(file, "%lf", &origin_s) == 1);
        if (file) fclose(file);
    }
    return has_begun && at_s > origin_s ? at_s - origin_s : 0;
}

double elapsed_s(void) { return since_origin_s(monotonic_s()); }

double unlimited_w(int gpu, double at_s) {
    const Programme *own = &programmes[gpu];
    double power_w = own->step[0].power_w, phase = own->kind == STEPS ? 0 : fmod(at_s, own->period_s) / own->period_s;
    if (own->kind == SAWTOOTH) return own->low_w + (own->high_w - own->low_w) * phase;
    if (own->kind == PULSES) return phase < own->duty ? own->high_w : own->low_w;
    for (int i = 1; i < own->steps; i++)
        if (own->step[i].start_s <= at_s) power_w = own->step[i].power_w;
    return power_w;
}

static double least(double one, double other) { return one < other ? one : other; }

/* Joules of the first `share` of one period. */
static double part_of_period_j(const Programme *own, double share, double limit_w) {
    if (own->kind == PULSES) {
        double high = least(share, own->duty);
        return own->period_s * (least(own->high_w, limit_w) * high + least(own->low_w, limit_w) * (share - high));
    }
    /* A ramp, flat from where it meets the limit. */
    double rise_w = own->high_w - own->low_w, meets = (limit_w - own->low_w) / rise_w;
    double free = meets < 0 ? 0 : least(meets, share);
    return own->period_s * (free * (own->low_w + rise_w * free / 2) + (share - free) * limit_w);
}

double limited_j(int gpu, double until_s, double limit_w) {
    const Programme *own = &programmes[gpu];
    double joules = 0;
    if (own->kind != STEPS) {
        double periods = floor(until_s / own->period_s), share = until_s / own->period_s - periods;
        return periods * part_of_period_j(own, 1, limit_w) + part_of_period_j(own, share, limit_w);
    }
    for (int i = 0; i < own->steps; i++) {
        double from_s = i ? own->step[i].start_s : 0, to_s = until_s;
        if (from_s >= until_s) break;
        if (i + 1 < own->steps) to_s = least(own->step[i + 1].start_s, until_s);
        joules += least(own->step[i].power_w, limit_w) * (to_s - from_s);
    }
    return joules;
}
