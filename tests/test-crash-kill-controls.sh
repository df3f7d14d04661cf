#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The two negative controls of crash-controls.sh that show within seconds: what is
# lost without a barrier is seen by kill -9 and by power losses of the real server.
exec bash "${srcdir:-.}/crash-controls.sh" A3_WAIT NONCE
