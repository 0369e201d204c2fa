"""Bugs planted in the kernels, each of which the emulation must notice.

A bug that no test sees is a test that is missing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emulation.steps import Bug, notices

# A __syncwarp that a shuffle follows is not among them: here lanes wait for each other at a shuffle
# as well, and only who looks for races knows the difference. These are in test_races.py.
BUGS = [
    Bug(
        "a slab is read before it is filled", "roi_pool.cu",
        "= __syncthreads_and(fill_slab",
        "= bool(fill_slab",
        "roi_pool_forward",
    ),
    Bug(
        "a slab is overwritten before all have read it", "roi_pool.cu",
        "    __syncthreads();  // the slab before this one is done with\n", "",
        "roi_pool_forward",
    ),
    Bug(
        "the last of equal maxima wins", "roi_pool.cu",
        "    const bool better = semantics::beats(wide, value);\n",
        "    const bool better = !semantics::beats(value, wide);\n",
        "roi_pool_forward",
    ),
    Bug(
        "NaN is taken for a maximum", "roi_pool.cu",
        "    if (!semantics::beats(value, lowest())) ", "    if (false) ",
        "roi_pool_forward",
    ),
    Bug(
        "the quads of a cell change places", "roi_pool.cu",
        "column, begin, end, slab,\n",
        "column, begin, end, slab + (Quads > 1),\n",
        "roi_pool_forward",
    ),
    Bug(
        "a vector load that is not aligned", "roi_pool.cu",
        " && map.c % kQuad<T> == 0 &&\n", " &&\n",
        "roi_pool_forward",
    ),
    Bug(
        "vectors are taken for aligned wherever a map begins", "roi_pool.cu",
        " &&\n         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;", ";",
        "roi_pool_forward",
    ),
    Bug(
        "the shared memory is not asked for", "launch.cuh",
        "  if (shape.shared_bytes > unasked) {\n", "  if (false) {\n",
        "roi_pool_forward", "roi_pool.cu",
    ),
    Bug(
        "64 bytes of every cell are taken where 16 have room", "roi_pool.cu",
        "    launch_slabs<1>(call, narrow, stream);\n",
        "    launch_slabs<4>(call, narrow, stream);\n",
        "roi_pool_forward",
    ),
    Bug(
        "bins beyond the first rows are the row above's", "roi_pool.cu",
        "const int bin = row * pw + column;\n",
        "const int bin = (row > 0 ? row - 1 : 0) * pw + column;\n",
        "roi_pool_forward",
    ),
    Bug(
        "rows of no image are left as they were", "roi_pool.cu",
        "    if (its_image != image && !(its_image < 0 && image == 0)) continue;\n",
        "    if (its_image != image) continue;\n",
        "roi_pool_forward",
    ),
    Bug(
        "a share of the RoIs is pooled by nobody", "roi_pool.cu",
        "ceil_div(call.rois.shape[0] - share, shares));\n",
        "(call.rois.shape[0] - share) / shares);\n",
        "roi_pool_forward",
    ),
    Bug(
        "the machine's maximum is taken where numbers are not ordered", "roi_pool.cu",
        "      if (ordered) {\n", "      if (true) {\n",
        "roi_pool_forward",
    ),
    Bug(
        "a warp asks itself alone whether numbers are ordered", "roi_pool.cu",
        "__syncthreads_and(fill_slab<kHasMaximum<T>, T, Quads>(\n        call.features, image, "
        "channel + quad * kQuad<T>, read_whole, mine));\n",
        "fill_slab<kHasMaximum<T>, T, Quads>(\n        call.features, image, "
        "channel + quad * kQuad<T>, read_whole, mine);\n    __syncthreads();\n",
        "roi_pool_forward",
    ),
    Bug(
        "of cells loaded together all but the first are taken for ordered", "roi_pool.cu",
        "if constexpr (Asked) ordered &= is_ordered<T>(values[i]);",
        "if constexpr (Asked) ordered &= i > 0 || is_ordered<T>(values[i]);",
        "roi_pool_forward",
    ),
    Bug(
        "cells behind the map are loaded", "roi_pool.cu",
        "load(cell + i * step < last ? cell + i * step : last)", "load(cell + i * step)",
        "roi_pool_forward",
    ),
    Bug(
        "the cells behind a slab are written", "roi_pool.cu",
        "if (cell + i * step < cells) slab[", "slab[",
        "roi_pool_forward",
    ),
    Bug(
        "a NaN of 16 bits is taken for ordered", "roi_pool.cu",
        "(magnitudes + (~signs - infinities)) | ", "",
        "roi_pool_forward_of_16_bits",
    ),
    Bug(
        "a -0 of 16 bits is taken for ordered", "roi_pool.cu",
        " | ((signs - magnitudes) & word)",
        "",
        "roi_pool_forward_of_16_bits",
    ),
    Bug(
        "the last of equal maxima of 16 bits wins", "roi_pool.cu",
        "better = __hgt2_mask(y, x);", "better = ~__hgt2_mask(x, y);",
        "roi_pool_forward_of_16_bits",
    ),
    Bug(
        "two maxima of 16 bits change their cells", "roi_pool.cu",
        "cells[c / 2] >> (c % 2 * 16)",
        "cells[c / 2] >> (16 - c % 2 * 16)",
        "roi_pool_forward_of_16_bits",
    ),
    Bug(
        "an empty bin has a cell", "roi_pool.cu",
        "for (int16_t& cell : cells.numbers) cell = -1;",
        "for (int16_t& cell : cells.numbers) cell = 0;",
        "roi_pool_forward",
    ),
    Bug(
        "a NaN of 32 bits is taken for ordered", "roi_pool.cu",
        "? 0x7f800000\n",
        "? 0x7fffffff\n",
        "roi_pool_forward",
    ),
    Bug(
        "of a pair the second is taken for the maximum", "roi_pool.cu",
        "is_first ? first : first + 1", "first + 1",
        "roi_pool_forward",
    ),
    Bug(
        "of a pair the first is taken for the maximum", "roi_pool.cu",
        "is_first ? first : first + 1", "first",
        "roi_pool_forward",
    ),
    Bug(
        "the last cell of an odd number is left out", "roi_pool.cu",
        "last_x = count > 1 ? x.end() - 2", "last_x = count == 2 ? x.end() - 2",
        "roi_pool_forward",
    ),
    Bug(
        "pairs between the first and the last are left out", "roi_pool.cu",
        "__ballot_sync(kAllLanes, widest > 4) != 0", "false",
        "roi_pool_forward",
    ),
    Bug(
        "bins of four columns are taken for bins of two", "roi_pool.cu",
        "__ballot_sync(kAllLanes, widest > 2) != 0", "false",
        "roi_pool_forward",
    ),
    Bug(
        "a line of another bin is taken for the one read last", "roi_pool.cu",
        "if (row != line_read) line =", "if (line_read < 0) line =",
        "roi_pool_forward",
    ),
    Bug(
        "of a long line the pairs have other cells", "roi_pool.cu",
        "cell + x);", "cell + x - 1);",
        "roi_pool_forward",
    ),
    Bug(
        "cells of 16 bits are those before the 2048th", "roi_pool.cu",
        ">> (c % 2 * 16) & 0xffff", ">> (c % 2 * 16) & 0x7ff",
        "roi_pool_forward_of_16_bits",
    ),
    Bug(
        "of equal maxima of two lines the last wins", "roi_pool.cu",
        "cells[i] = y > x ? other_cells(i) : cells[i];",
        "cells[i] = y >= x ? other_cells(i) : cells[i];",
        "roi_pool_forward",
    ),
    Bug(
        "a RoI's part of the planes is copied before all have written it", "roi_pool.cu",
        "        __syncwarp();\n        copy_out(memory.values", "        copy_out(memory.values",
        "roi_pool_forward",
    ),
    Bug(
        "planes are copied by vectors wherever they begin", "roi_pool.cu",
        "if (reinterpret_cast<uintptr_t>(to) % 16 == 0) whole_vectors", "whole_vectors",
        "roi_pool_forward",
    ),
    Bug(
        "results are taken for aligned as the map is", "roi_pool.cu",
        "has_whole_quads<T>(call.output)", "has_whole_quads<T>(call.features)",
        "roi_pool_forward",
    ),
    Bug(
        "cells are taken for aligned as the values are", "roi_pool.cu",
        "(!WithArgmax || has_whole_quads<T>(call.argmax))", "true",
        "roi_pool_forward",
    ),
    Bug(
        "bins begin before the 256th row or column", "roi_pool.cu",
        "{static_cast<unsigned>(begin) |", "{static_cast<unsigned>(begin & 255) |",
        "roi_pool_forward",
    ),
    Bug(
        "of a lane's columns the first is taken for the widest", "roi_pool.cu",
        "columns[column].size() > widest ?", "widest == 0 ?",
        "roi_pool_forward",
    ),
    Bug(
        "of the last RoIs one in four is taken", "roi_pool.cu",
        "first = atomicAdd(taken, count);", "first = atomicAdd(taken, kBatch);",
        "roi_pool_forward",
    ),
    Bug(
        "rows behind the last RoI are listed", "roi_pool_gradient.cu",
        "images[i] = row < call.rois.shape[0] ? call.rois.data[5 * row] : -1.0f;",
        "images[i] = row < call.rois.shape[0] ? call.rois.data[5 * row] : 0.0f;",
        "roi_pool_backward",
    ),
    Bug(
        "all lanes of one cell add", "roi_pool_gradient.cu",
        "if ((sharing[i] & lanes_before(lane)) != 0 || cell[i] >= cells)", "if (cell[i] >= cells)",
        "roi_pool_backward",
    ),
    Bug(
        "a word is made zero after others have put their bits there", "roi_pool_gradient.cu",
        "= 0;  // by all who share it\n      __syncwarp();\n", "= 0;\n",
        "roi_pool_backward",
    ),
    Bug(
        "a word is read before all have put their bits there", "roi_pool_gradient.cu",
        "not be of a sum\n      __syncwarp();\n", "not be of a sum\n",
        "roi_pool_backward",
    ),
    Bug(
        "a word is made zero before all have read it", "roi_pool_gradient.cu",
        "      __syncwarp();  // the next step's zeros may come there\n", "",
        "roi_pool_backward",
    ),
    Bug(
        "a word is not made zero", "roi_pool_gradient.cu",
        "*const_cast<volatile unsigned*>(word) = 0;", "",
        "roi_pool_backward",
    ),
    Bug(
        "a lane puts its neighbour's bit into a word", "roi_pool_gradient.cu",
        "mine = 1u << lane_of();", "mine = 1u << (lane_of() ^ 1);",
        "roi_pool_backward",
    ),
    Bug(
        "half of the lanes put no bit into a word", "roi_pool_gradient.cu",
        "mine = 1u << lane_of();", "mine = static_cast<uint16_t>(1u << lane_of());",
        "roi_pool_backward",
    ),
    Bug(
        "a lane without a cell uses a word beyond its plane's", "roi_pool_gradient.cu",
        "first + (cell[i] < cells ? cell[i] : cells);", "first + cell[i];",
        "roi_pool_backward",
    ),
    Bug(
        "a lane without a cell uses the next plane's first word", "roi_pool_gradient.cu",
        "{ return cells + 1; }", "{ return cells; }",
        "roi_pool_backward",
    ),
    Bug(
        "all planes of a group use the same words", "roi_pool_gradient.cu",
        " + added * CellWords::count(cells)", "",
        "roi_pool_backward",
    ),
    Bug(
        "words are used where there is no room for them", "roi_pool_gradient.cu",
        "InShared && shared_bytes + words <= limit", "InShared",
        "roi_pool_backward",
    ),
    Bug(
        "without words lanes do not find each other", "roi_pool_gradient.cu",
        "__match_any_sync(kAllLanes, cell[i])", "1u << lane_of()",
        "roi_pool_backward",
    ),
    Bug(
        "the first lane adds last", "roi_pool_gradient.cu",
        "      sum += gradient[i];\n"
        "#pragma unroll\n      for (int k = 0; k < kFetched; ++k) sum += fetched[i][k];\n",
        "      for (int k = 0; k < kFetched; ++k) sum += fetched[i][k];\n"
        "      sum += gradient[i];\n",
        "roi_pool_backward",
    ),
    Bug(
        "the fifth of a cell and those after it are lost", "roi_pool_gradient.cu",
        "      if (is_more[i]) {\n", "      if (false) {\n",
        "roi_pool_backward",
    ),
    Bug(
        "the sixth of a cell and those after it are lost", "roi_pool_gradient.cu",
        "while (__ballot_sync(kAllLanes, adds && --rest > 0) != 0);\n", "while (false);\n",
        "roi_pool_backward",
    ),
    Bug(
        "the fifth of a cell is lost where it is the last", "roi_pool_gradient.cu",
        "cell[i] != kNoCell && others[i] > 0", "cell[i] != kNoCell && others[i] > 1",
        "roi_pool_backward",
    ),
    Bug(
        "a cell's only lane adds its own twice", "roi_pool_gradient.cu",
        "after != 0 ? one : W(-0.0);", "one;",
        "roi_pool_backward",
    ),
    Bug(
        "the second of a cell is added in place of the third", "roi_pool_gradient.cu",
        "fetch(i, fetched[i][k - 1])", "fetch(i, gradient[i])",
        "roi_pool_backward",
    ),
    Bug(
        "cells of 16 bits have a sign", "roi_pool_gradient.cu",
        "static_cast<int>(row.argmax[number])",
        "static_cast<int>(static_cast<std::make_signed_t<Index>>(row.argmax[number]))",
        "roi_pool_backward",
    ),
    Bug(
        "a step is added to before the one before it is", "roi_pool_gradient.cu",
        " = sum;\n      __syncwarp();\n", " = sum;\n",
        "roi_pool_backward",
    ),
    Bug(
        "the gradients taken last are lost", "roi_pool_gradient.cu",
        "begin < bins + Walk::kBatch;", "begin < bins;",
        "roi_pool_backward",
    ),
    Bug(
        "what is beyond the last bin is added", "roi_pool_gradient.cu",
        "if (i * kWarp + lane >= left) cell[i]", "if (left <= 0) cell[i]",
        "roi_pool_backward",
    ),
    Bug(
        "a cell beyond the map is added to", "roi_pool_gradient.cu",
        "|| cell[i] >= cells)", "|| cell[i] > cells)",
        "roi_pool_backward",
    ),
    Bug(
        "a row of another image is listed", "roi_pool_gradient.cu",
        "    if (mine)\n      list.row[", "    if (true)\n      list.row[",
        "roi_pool_backward",
    ),
    Bug(
        "the next RoI begins where the one before it ended", "roi_pool_gradient.cu",
        "beyond + (static_cast<int>(size) & is_same)",
        "(beyond + static_cast<int>(size)) & is_same",
        "roi_pool_backward",
    ),
    Bug(
        "both teams begin with the same batch", "roi_pool_gradient.cu",
        "team_of<Channels>() * kBatch + thread_of", "thread_of",
        "roi_pool_backward",
    ),
    Bug(
        "a team adds before the other one has", "roi_pool_gradient.cu",
        "        }\n        __syncthreads();\n      }\n", "        }\n      }\n",
        "roi_pool_backward",
    ),
    Bug(
        "steps are taken before all are there", "roi_pool_gradient.cu",
        "          __syncthreads();\n          if (prepares) exchange->take(",
        "          if (prepares) exchange->take(",
        "roi_pool_backward",
    ),
    Bug(
        "a warp gets the steps of another channel", "roi_pool_gradient.cu",
        "      steps.cell[i] = cell[i][channel][lane_of()];\n",
        "      steps.cell[i] = cell[i][channel / 2 * 2][lane_of()];\n",
        "roi_pool_backward",
    ),
    Bug(
        "a list is overwritten before all have walked through it", "roi_pool_gradient.cu",
        "      __syncthreads();  // the list before this one is done with\n", "",
        "roi_pool_backward",
    ),
    Bug(
        "a list is walked through before it is there", "roi_pool_gradient.cu",
        "list_rows(call, image, first, row, list);\n      __syncthreads();\n",
        "list_rows(call, image, first, row, list);\n",
        "roi_pool_backward",
    ),
    Bug(
        "a RoI beyond the list is read", "roi_pool_gradient.cu",
        "list.row[place < last ? place : last]", "list.row[place]",
        "roi_pool_backward",
    ),
    Bug(
        "a channel beyond the last is read", "roi_pool_gradient.cu",
        "moved < channels ? moved : channels - 1", "moved",
        "roi_pool_backward",
    ),
    Bug(
        "a channel beyond the last is written", "roi_pool_gradient.cu",
        "    if (first + moved < result.c)\n", "    if (true)\n",
        "roi_pool_backward",
    ),
    Bug(
        "a long RoI is walked through as a short one", "roi_pool_gradient.cu",
        "batch(distance(grad, kBatch))", "batch(distance(grad, kWarp))",
        "roi_pool_backward",
    ),
    Bug(
        "sums are written before all are there", "roi_pool_gradient.cu",
        "    __syncthreads();\n    T* const out", "    T* const out",
        "roi_pool_backward",
    ),
    Bug(
        "sums are made zero before all are written", "roi_pool_gradient.cu",
        "    __syncthreads();  // the next group's zeros come after\n", "",
        "roi_pool_backward",
    ),
    Bug(
        "the legacy default stream is the builder's default", "launch.cuh",
        "stream.handle() == nullptr ? cudaStreamLegacy : stream.handle()", "stream.handle()",
        "device_errors", "smooth_l1.cu",
    ),
    Bug(
        "the fold of the loss forgets its barrier", "smooth_l1.cu",
        "    __syncthreads();\n    if (lane < half)", "    if (lane < half)",
        "smooth_l1",
    ),
    Bug(
        "the gradient of the loss is that of its sum", "smooth_l1.cu",
        "*grad_loss / static_cast<T>(call.normalizer)", "*grad_loss",
        "smooth_l1",
    ),
    Bug(
        "the sums are not zero at first", "roi_pool_gradient.cu",
        "      sums.at(cell, added) = 0;\n", "      {}\n",
        "roi_pool_backward",
    ),
    Bug(
        "a number's place in its RoI is of 16 bits", "roi_pool_gradient.cu",
        "row.gradient[number];", "row.gradient[number & 0xffff];",
        "roi_pool_backward",
    ),
    Bug(
        "a bin's place in its RoI is of 16 bits", "roi_pool.cu",
        "put(values, call.output.data + to + bin * bin_stride, place);",
        "put(values, call.output.data + to + (bin * bin_stride & 0xffff), place);",
        "roi_pool_forward",
    ),
    Bug(
        "of equal scores the higher index is kept", "nms_steps.cuh",
        "(a.key == b.key && a.index < b.index)", "(a.key == b.key && a.index > b.index)",
        "nms", "nms.cu",
    ),
    Bug(
        "a slot of the table of classes is what it was", "nms.cu",
        "fill_bytes(found.count, 0, 1 + slots, stream);",
        "fill_bytes(found.count, 0, slots, stream);",
        "nms",
    ),
    Bug(
        "a suppressed box suppresses", "nms_steps.cuh",
        "open &= ~found & ~__ballot_sync(kAllLanes, (suppressors & found) != 0);",
        "open &= ~found;",
        "nms", "nms.cu",
    ),
    Bug(
        "a list for which there is no room is gathered in part", "nms_steps.cuh",
        "      gather(source, id, gathered, count, &state.gathered);\n", "",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a place is found before all have counted", "nms_steps.cuh",
        "= before;\n    __syncthreads();\n", "= before;\n",
        "nms", "nms.cu",
    ),
    Bug(
        "the counts of a group are those of the next", "nms_steps.cuh",
        "can_be_kept(box);\n    }\n    __syncthreads();\n", "can_be_kept(box);\n    }\n",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a box with a NaN is detected", "detections.cu",
        "return semantics::is_whole(box);", "return true;",
        "detections",
    ),
    Bug(
        "a score that is not above the threshold is looked at", "detections.cu",
        "return score > score_threshold;", "return score >= score_threshold;",
        "detections",
    ),
    Bug(
        "rows behind the last are gathered", "nms_steps.cuh",
        "ids[i] = is_row ? source.class_of(index_of(i), id) : ~id;",
        "ids[i] = source.class_of(index_of(i), id);",
        "nms", "nms.cu",
    ),
    Bug(
        "boxes of all classes are gathered for each", "nms_steps.cuh",
        "scores[i] = ids[i] == id ?", "scores[i] = ids[i] != ~id ?",
        "nms", "nms.cu",
    ),
    Bug(
        "others are overwritten before all lanes have counted", "nms_steps.cuh",
        "others[i], mine);\n      __syncwarp();\n", "others[i], mine);\n",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a box of another class counts", "nms_steps.cuh",
        "return i < list.count ? gathered[i] : Ranked<T>::last();", "return gathered[i];",
        "nms", "nms.cu",
    ),
    Bug(
        "columns are overwritten before all lanes have compared", "nms_steps.cuh",
        "lanes_before(lane));\n      __syncwarp();\n", "lanes_before(lane));\n",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "where boxes go is overwritten before all have gone there", "nms_steps.cuh",
        "kept.boxes[begin + i] = ranked[i];\n  __syncthreads();\n",
        "kept.boxes[begin + i] = ranked[i];\n",
        "nms", "nms.cu",
    ),
    Bug(
        "later windows are not compared", "nms_steps.cuh",
        "if (first >= *lists.longest) return;", "if (first > 0) return;",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a share of the columns is nobody's", "nms_steps.cuh",
        "part = static_cast<int>(share / groups);", "part = static_cast<int>(share / groups / 2);",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "the last window of long lists is left out", "nms_steps.cuh",
        "first * kWarp < source.rows;", "(first + sizes.window) * kWarp < source.rows;",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "there is no room for groups filled in part", "nms_steps.cuh",
        "candidates / kWarp + std::min(most_classes, candidates);", "candidates / kWarp;",
        "nms", "nms.cu",
    ),
    Bug(
        "the last group of a list is nobody's", "nms_steps.cuh",
        "i < groups; i +=", "i + 1 < groups; i +=",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "what earlier windows have kept suppresses nothing", "nms_steps.cuh",
        "        dead |= suppressors != 0;\n", "        dead = false;\n",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "later windows are compared with other boxes than the kept", "nms_steps.cuh",
        "boxes[rank] = box, ", "",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "what lies behind the kept boxes suppresses", "nms_steps.cuh",
        "(other < (is_earlier ? list.kept : list.count))", "(other < list.count)",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "what the groups of earlier turns have kept suppresses nothing", "nms_steps.cuh",
        "is_open = suppressors == 0;", "is_open = true;",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a turn begins before the one before it is known", "nms_steps.cuh",
        "    __syncthreads();\n  }\n  return kept;\n", "  }\n  return kept;\n",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "what a group has kept suppresses nothing in the next", "nms_steps.cuh",
        "open &= ~__ballot_sync(kAllLanes, suppressed != 0);", "{}",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a group does not wait for the one before it", "nms_steps.cuh",
        "keep_of_group(open, waits != 0, own)", "keep_of_group(open, false, own)",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "a place that stays empty is left as it was", "nms_steps.cuh",
        "place = written + first_element(); place", "place = written + 1 + first_element(); place",
        "nms", "nms.cu",
    ),
    Bug(
        "what there is no room for counts", "nms_steps.cuh",
        "*count = written;", "*count = total;",
        "detections", "detections.cu",
    ),
    Bug(
        "a list goes on after it has kept enough", "nms_steps.cuh",
        "|| list.kept >= rule.enough)) continue;", ")) continue;",
        "nms_of_long_lists", "nms.cu",
    ),
    Bug(
        "one more detection is written than there is room for", "nms_steps.cuh",
        "lane_of() == 0 && before < enough", "lane_of() == 0 && before <= enough",
        "detections", "detections.cu",
    ),
    Bug(
        "deltas for all classes are read as those of each", "detections.cu",
        "is_class_agnostic ? row : index", "index",
        "detections", "detections.cu",
    ),
]  # fmt: skip


def test_nothing_is_noticed_where_nothing_is_planted(
    objects: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    control = Bug("none", "smooth_l1.cu", "namespace {\n", "namespace {\n", "smooth_l1")
    assert notices(control, objects, tmp_path / "control") == ""


def test_every_planted_bug_is_noticed(
    objects: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as pool:
        seen = list(
            pool.map(lambda i: notices(BUGS[i], objects, tmp_path / str(i)), range(len(BUGS)))
        )
    with capsys.disabled():
        for bug, what in zip(BUGS, seen, strict=True):
            print(f"\n{'noticed' if what else 'MISSED '}  {bug.name}: {what[:90]}", end="")
    assert [bug.name for bug, what in zip(BUGS, seen, strict=True) if not what] == []
