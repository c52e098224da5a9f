/* output - how bfctl shows things: tables, durations, the progress line, plots, JSON.
 *
 * Text that came from elsewhere (names, reasons, log lines) passes output_text(), so that it cannot move a
 * terminal's cursor.
 */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "proto/progress.h"

enum { OUTPUT_MAX_COLUMNS = 12, OUTPUT_CELL = 64 };

/* A table that is printed once all its rows are known, columns as wide as they need to be. */
struct output_table {
    int n_columns;
    const char *titles[OUTPUT_MAX_COLUMNS];
    bool right[OUTPUT_MAX_COLUMNS]; /* numbers */
    char (*cells)[OUTPUT_CELL];     /* n_rows * n_columns */
    int n_rows;
};

/* Starts a row of empty cells and returns its first one; cell i is [i]. Valid until the next row. */
char (*output_table_row(struct output_table *t))[OUTPUT_CELL];
void output_table_print(const struct output_table *t, FILE *out);
void output_table_free(struct output_table *t);

/* One JSON document and a newline, flushed. */
void output_json(const cJSON *v);

/* Copies text with control characters (but tabs) replaced by '?', cut to cap - 1 bytes at a character's
 * border. */
void output_text(char *out, size_t cap, const char *text);

/* "850 ms" "4.2 s" "45 s" "3 m 20 s" "1 h 02 m" "2 d 03 h"; "-" when unknown (NaN or negative). */
void output_duration(char *out, size_t cap, double s);

/* "12.3" "4510" "-": three to four digits. */
void output_rate(char *out, size_t cap, double per_s);

/* Progress of a job. On a terminal one line that updates itself, elsewhere a line every few seconds. */
struct output_progress {
    FILE *out;
    bool tty;
    bool open;       /* the terminal's line holds progress now */
    int64_t last_ns; /* when a line was written; 0 = never */
    char last_phase[16];
};

void output_progress_init(struct output_progress *o, FILE *out);
void output_progress_show(struct output_progress *o, const struct progress *p);

/* Clears the self-updating line before something else is printed. */
void output_progress_clear(struct output_progress *o);

/* The text of a progress line: "[####....]  50 %  step 5/10  epoch 1/2  loss 0.51  900 images/s  ETA 3.0 s".
 * The bar is left out when bar_cells is 0. */
void output_progress_text(const struct progress *p, int bar_cells, char *out, size_t cap);

/* Plots a series of n points (x rising) in rows x columns characters, with the range on the axes. */
void output_plot(FILE *out, const char *title, const double *x, const double *y, int n, int columns,
                 int rows);

#endif
