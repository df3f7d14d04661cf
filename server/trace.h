/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* trace.h - the requests of clients and their replies, for -v: a line each. */
#ifndef NBDFLEECE_TRACE_H
#define NBDFLEECE_TRACE_H

#include "request.h"

struct op;

/* As it came, before it was looked at. */
void trace_request (const struct request *rq);
/* As it is answered. */
void trace_reply (const struct op *op);

#endif /* NBDFLEECE_TRACE_H */
