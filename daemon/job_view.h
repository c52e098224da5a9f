/* job_view - jobs as clients see them. */
#ifndef DAEMON_JOB_VIEW_H
#define DAEMON_JOB_VIEW_H

#include <cjson/cJSON.h>
#include "daemon/daemon.h"

/* A line of job.list. */
cJSON *job_view_summary(const struct daemon *d, const struct job *job);

/* The whole record of job.get; NULL when the spec cannot be read. */
cJSON *job_view_record(const struct daemon *d, const struct job *job, struct err *e);

/* One sentence: why the job is where it is, and until when. */
void job_view_explain(const struct daemon *d, const struct job *job, char *out, size_t size);

#endif
