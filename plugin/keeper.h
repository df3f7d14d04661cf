/* SPDX-License-Identifier: BSD-3-Clause */
/* keeper.h - the plugin's background thread: it stores sealed epochs after
 * cuts, frees the space of broken snapshots, and passes what fleece/ tells
 * (fleece.h, FleeceNotify) to the log and to control clients, so that a guest's
 * write never waits for either.
 *
 * Locking: a mutex of its own, a leaf; never held across I/O.
 */
#ifndef KEEPER_H
#define KEEPER_H

#include <stdbool.h>
#include <glib.h>
#include <jansson.h>
#include "fleece/fleece.h"

typedef struct Keeper Keeper;

/* Before any thread: notes are queued from now on. */
Keeper *keeper_new (void);
/* After the fork. */
bool keeper_start (Keeper *keeper, Fleece *fleece, GError **error);
/* Joins the thread, then logs the notes that are left. */
void keeper_stop (Keeper *keeper);
void keeper_free (Keeper *keeper);              /* NULL is fine */

/* A FleeceNotify; opaque is the Keeper.  Keeps at most 1000 notes: the rest are
 * counted, and the count is logged. */
void keeper_notify (void *opaque, FleeceNoteKind kind, const char *disk,
                    const char *snapshot, const char *text, int error_number);

/* Likewise an event, for control clients alone.  name: static; data: stolen. */
void keeper_event (Keeper *keeper, const char *name, json_t *data);

/* Log what has been noted up to now; for the time without a thread. */
void keeper_flush (Keeper *keeper);

/* A cut has happened: store what it sealed. */
void keeper_wake (Keeper *keeper);

#endif
