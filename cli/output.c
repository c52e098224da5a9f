/* output - see output.h. */
#include "cli/output.h"
#include "common/clock.h"
#include "common/err.h"
#include "common/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_CELLS = 24, QUIET_EVERY_S = 5, TTY_EVERY_MS = 50, LINE_MAX_BYTES = 512 };

/* --- text --- */

void output_text(char *out, size_t cap, const char *text)
{
    size_t n = strlen(text);

    if (n >= cap) {
        n = cap - 1;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
            n--;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        out[i] = (char)((c < 0x20 && c != '\t') || c == 0x7f ? '?' : c);
    }
    out[n] = 0;
}

void output_duration(char *out, size_t cap, double s)
{
    if (!(s >= 0) || !isfinite(s)) {
        snprintf(out, cap, "-");
        return;
    }
    long long t = llround(s);
    if (s < 0.9995)
        snprintf(out, cap, "%.0f ms", s * 1000);
    else if (s < 9.95)
        snprintf(out, cap, "%.1f s", s);
    else if (t < 60)
        snprintf(out, cap, "%lld s", t);
    else if (t < 3600)
        snprintf(out, cap, "%lld m %02lld s", t / 60, t % 60);
    else if (t < 86400)
        snprintf(out, cap, "%lld h %02lld m", t / 3600, t % 3600 / 60);
    else
        snprintf(out, cap, "%lld d %02lld h", t / 86400, t % 86400 / 3600);
}

void output_rate(char *out, size_t cap, double per_s)
{
    if (!(per_s >= 0) || !isfinite(per_s))
        snprintf(out, cap, "-");
    else
        snprintf(out, cap, per_s < 100 ? "%.1f" : "%.0f", per_s);
}

void output_json(const cJSON *v)
{
    char *text = json_text(v);

    puts(text);
    fflush(stdout);
    free(text);
}

/* --- tables --- */

char (*output_table_row(struct output_table *t))[OUTPUT_CELL]
{
    size_t n = (size_t)(t->n_rows + 1) * (size_t)t->n_columns;

    t->cells = xrealloc(t->cells, n * sizeof *t->cells);
    char(*row)[OUTPUT_CELL] = t->cells + (size_t)t->n_rows * (size_t)t->n_columns;
    memset(row, 0, (size_t)t->n_columns * sizeof *row);
    t->n_rows++;
    return row;
}

static void print_cell(FILE *out, const char *text, int width, bool right, bool last)
{
    if (right)
        fprintf(out, "%*s", width, text);
    else
        fprintf(out, "%-*s", last ? 0 : width, text);
    fputs(last ? "\n" : "  ", out);
}

void output_table_print(const struct output_table *t, FILE *out)
{
    int width[OUTPUT_MAX_COLUMNS];

    for (int c = 0; c < t->n_columns; c++) {
        width[c] = (int)strlen(t->titles[c]);
        for (int r = 0; r < t->n_rows; r++) {
            int n = (int)strlen(t->cells[r * t->n_columns + c]);
            width[c] = n > width[c] ? n : width[c];
        }
    }
    for (int c = 0; c < t->n_columns; c++)
        print_cell(out, t->titles[c], width[c], t->right[c], c == t->n_columns - 1);
    for (int r = 0; r < t->n_rows; r++)
        for (int c = 0; c < t->n_columns; c++)
            print_cell(out, t->cells[r * t->n_columns + c], width[c], t->right[c], c == t->n_columns - 1);
}

void output_table_free(struct output_table *t)
{
    free(t->cells);
    t->cells = NULL;
    t->n_rows = 0;
}

/* --- progress --- */

void output_progress_init(struct output_progress *o, FILE *out)
{
    *o = (struct output_progress){.out = out, .tty = isatty(fileno(out))};
}

static void append(char *out, size_t cap, const char *text)
{
    size_t n = strlen(out);

    snprintf(out + n, cap - n, "%s%s", n ? "  " : "", text);
}

void output_progress_text(const struct progress *p, int bar_cells, char *out, size_t cap)
{
    double done = p->n_steps > 0 ? (double)p->step / (double)p->n_steps : 0;
    char part[96], number[32];

    *out = 0;
    if (bar_cells > 0 && bar_cells < (int)sizeof part - 3) {
        int full = (int)(done * bar_cells);
        part[0] = '[';
        for (int i = 0; i < bar_cells; i++)
            part[1 + i] = i < full ? '#' : '.';
        part[1 + bar_cells] = ']';
        part[2 + bar_cells] = 0;
        append(out, cap, part);
    }
    snprintf(part, sizeof part, "%3.0f %%  step %lld/%lld  epoch %lld/%lld", floor(done * 100),
             (long long)p->step, (long long)p->n_steps, (long long)p->epoch, (long long)p->n_epochs);
    append(out, cap, part);
    if (isfinite(p->loss)) {
        snprintf(part, sizeof part, "loss %.4g", p->loss);
        append(out, cap, part);
    }
    if (isfinite(p->images_per_s) && p->images_per_s > 0) {
        output_rate(number, sizeof number, p->images_per_s);
        snprintf(part, sizeof part, "%s images/s", number);
        append(out, cap, part);
    }
    if (isfinite(p->eta_s)) {
        output_duration(number, sizeof number, p->eta_s);
        snprintf(part, sizeof part, "ETA %s", number);
        append(out, cap, part);
    }
    if (*p->phase && strcmp(p->phase, "train") != 0) {
        char phase[sizeof p->phase];
        output_text(phase, sizeof phase, p->phase);
        append(out, cap, phase);
    }
}

static int terminal_columns(FILE *out)
{
    struct winsize w;

    return ioctl(fileno(out), TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

void output_progress_show(struct output_progress *o, const struct progress *p)
{
    char line[LINE_MAX_BYTES];
    int64_t now = clock_mono_ns();
    bool new_phase = strcmp(o->last_phase, p->phase) != 0;
    int64_t every_ns = o->tty ? TTY_EVERY_MS * (int64_t)1000000 : QUIET_EVERY_S * (int64_t)1000000000;

    if (o->last_ns && now - o->last_ns < every_ns && !(o->tty && new_phase))
        return;
    o->last_ns = now;
    snprintf(o->last_phase, sizeof o->last_phase, "%s", p->phase);
    output_progress_text(p, o->tty ? BAR_CELLS : 0, line, sizeof line);
    if (o->tty) {
        fprintf(o->out, "\r\033[K%.*s", terminal_columns(o->out) - 1, line);
        o->open = true;
    } else {
        fprintf(o->out, "%s\n", line + strspn(line, " "));
    }
    fflush(o->out);
}

void output_progress_clear(struct output_progress *o)
{
    if (!o->open)
        return;
    fputs("\r\033[K", o->out);
    fflush(o->out);
    o->open = false;
}

/* --- plots --- */

static void range_of(const double *v, int n, double *lo, double *hi)
{
    *lo = INFINITY;
    *hi = -INFINITY;
    for (int i = 0; i < n; i++)
        if (isfinite(v[i])) {
            *lo = fmin(*lo, v[i]);
            *hi = fmax(*hi, v[i]);
        }
}

void output_plot(FILE *out, const char *title, const double *x, const double *y, int n, int columns, int rows)
{
    double x0, x1, y0, y1;

    range_of(x, n, &x0, &x1);
    range_of(y, n, &y0, &y1);
    fprintf(out, "%s\n", title);
    if (!(x0 <= x1) || !(y0 <= y1)) {
        fprintf(out, "  (no finite values)\n");
        return;
    }
    char *grid = xmalloc((size_t)(columns * rows));
    memset(grid, ' ', (size_t)(columns * rows));
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i]) || !isfinite(y[i]))
            continue;
        int c = x1 > x0 ? (int)lround((x[i] - x0) / (x1 - x0) * (columns - 1)) : 0;
        int r = y1 > y0 ? (int)lround((y1 - y[i]) / (y1 - y0) * (rows - 1)) : rows / 2;
        grid[r * columns + c] = '*';
    }
    for (int r = 0; r < rows; r++) {
        char label[32] = "";
        if (r == 0 || r == rows - 1)
            snprintf(label, sizeof label, "%.4g", r == 0 ? y1 : y0);
        fprintf(out, "%10s |%.*s\n", label, columns, grid + r * columns);
    }
    char right[32];
    snprintf(right, sizeof right, "%.6g", x1);
    fprintf(out, "%10s +", "");
    for (int c = 0; c < columns; c++)
        fputc('-', out);
    fprintf(out, "\n%10s  %-*.6g%s\n", "", columns - (int)strlen(right), x0, right);
    free(grid);
}
