/* Settings from the environment: chosen by host, split by GPU; and the faults that are asked for. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "simulated.h"

enum { MAX_FAULTS = 64 };

typedef struct { int gpu; char kind[32]; double from_s, until_s; } Fault;

static Fault faults[MAX_FAULTS];
static int fault_count;

static const char *host(void) {
    static char name[256];
    if (!*name) gethostname(name, sizeof name - 1);
    return name;
}

const char *setting(const char *name, const char *otherwise) {
    static char chosen[4096];
    char variable[64], *rest = chosen, *part;
    snprintf(variable, sizeof variable, "SIMULATED_NVML_%s", name);
    const char *value = getenv(variable), *general = otherwise;
    if (!value || !*value) return otherwise;
    snprintf(chosen, sizeof chosen, "%s", value);
    while ((part = strsep(&rest, "|"))) {
        char *own = strchr(part, '=');
        if (!own) general = part;
        else if (strlen(host()) == (size_t)(own - part) && !strncmp(part, host(), own - part)) return own + 1;
    }
    return general;
}

void setting_of(const char *name, const char *otherwise, int index, char *part, int size) {
    char text[4096], *rest = text, *entry = text;
    snprintf(text, sizeof text, "%s", setting(name, otherwise));
    for (int i = 0; i <= index && rest; i++) entry = strsep(&rest, ";");
    snprintf(part, size, "%s", entry);
}

unsigned int host_number(void) {
    const char *power = getenv("SIMULATED_NVML_POWER");
    unsigned int hash = 2166136261u; /* FNV-1a */
    if (!power || !strchr(power, '=')) return 0;
    for (const char *letter = host(); *letter; letter++) hash = (hash ^ (unsigned char)*letter) * 16777619u;
    return hash;
}

void read_faults(void) {
    char text[4096], *rest = text, *entry;
    snprintf(text, sizeof text, "%s", setting("FAULTS", ""));
    fault_count = 0;
    while ((entry = strsep(&rest, ";")) && fault_count < MAX_FAULTS) {
        Fault *fault = &faults[fault_count];
        fault->from_s = 0;
        fault->until_s = 1e300;
        if (sscanf(entry, "%d:%31[a-z_]@%lf-%lf", &fault->gpu, fault->kind, &fault->from_s, &fault->until_s) >= 2)
            fault_count++;
    }
}

int has_fault(int gpu, const char *kind, double *from_s) {
    for (int i = 0; i < fault_count; i++) {
        const Fault *fault = &faults[i];
        if (fault->gpu != gpu || strcmp(fault->kind, kind)) continue;
        double now_s = elapsed_s();
        if (now_s < fault->from_s || now_s >= fault->until_s) continue;
        if (from_s) *from_s = fault->from_s;
        return 1;
    }
    return 0;
}

int state_of(int gpu, const char *sensor) {
    static const struct { const char *form; int code; } kinds[] = {
        {"no_%s", NOT_SUPPORTED}, {"%s_denied", NO_PERMISSION}, {"%s_fails", UNKNOWN}};
    if (!fault_count) return OK;
    if (has_fault(gpu, "lost", NULL)) return GPU_IS_LOST;
    for (int i = 0; i < 3; i++) {
        char kind[64];
        snprintf(kind, sizeof kind, kinds[i].form, sensor);
        if (has_fault(gpu, kind, NULL)) return kinds[i].code;
    }
    return OK;
}
