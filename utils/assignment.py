"""The assignment of munkres 1.1.4, over arrays: the same pairs in every case, ties included.

Where several pairings cost the same, which one the original's grouping takes depends on the order
in which that package looks for zeros. The steps are Munkres's (1957); the orders noted below are
the package's, and tests/test_assignment.py holds this file to it.
"""

import numpy as np


def assign(cost):
    """The one-to-one pairing of rows with columns of the lowest total cost: rows, columns.

    cost: (R, C) finite floats. Returns two arrays of min(R, C) numbers, rows in rising order. As
    in munkres, a matrix that is not square is filled up with zeros.
    """
    R, C = cost.shape
    cheapest = cost == cost.min(1, keepdims=True)
    if R <= C and cheapest.sum() == R and cheapest.any(0).sum() == R:
        # Every row has one cheapest column, and no two rows share it.
        return np.arange(R), cheapest.argmax(1)
    square = np.zeros((max(R, C),) * 2)
    square[:R, :C] = cost
    columns = np.array(complete(square - square.min(1, keepdims=True)))[:R]
    rows = np.flatnonzero(columns < C)
    return rows, columns[rows]


def complete(cost):
    """The column of every row, from a square cost whose rows have a minimum of 0; changes it.

    Sets of columns are bits of whole numbers, so that looking for a zero costs one operation a row.
    A star is a zero that belongs to the pairing so far, a prime one that may take a star's place.
    """
    n = len(cost)
    starred_in = [-1] * n  # row -> column, -1 for none
    starred_by = [-1] * n  # column -> row
    zeros = zero_bits(cost)
    free = (1 << n) - 1  # columns without a star
    for row in range(n):  # the first zero from the left
        if bits := zeros[row] & free:
            column = (bits & -bits).bit_length() - 1
            starred_in[row], starred_by[column] = column, row
            free &= ~(1 << column)
    while -1 in starred_in:
        covered, open_columns = [False] * n, free  # rows; columns that are not covered
        primed_in = [-1] * n
        row = column = 0
        while True:
            row, column = find_zero(zeros, covered, open_columns, row, column)
            if row < 0:
                step = smallest_step(cost, covered, open_columns)
                zeros = zero_bits(step)
                row = column = 0
                continue
            primed_in[row] = column
            if starred_in[row] < 0:
                break
            covered[row] = True
            column = starred_in[row]
            open_columns |= 1 << column
        # Along the path of primes and stars in turn, primes become stars.
        while row >= 0:
            free &= ~(1 << column)
            other = starred_by[column]
            starred_in[row], starred_by[column] = column, row
            row, column = other, primed_in[other]
    return starred_in


def find_zero(zeros, covered, open_columns, row, column):
    """Row and column of an uncovered zero, or -1, -1.

    Rows are tried from `row` on, past the last one from the first. Within a row it is the last one,
    counted from `column` on: the largest number below it or, without such, the largest of all.
    """
    n, below = len(zeros), (1 << column) - 1
    for i in (*range(row, n), *range(row)):
        if not covered[i] and (bits := zeros[i] & open_columns):
            return i, (bits & below or bits).bit_length() - 1
    return -1, -1


def zero_bits(cost):
    """The zeros of every row, as a whole number with a bit for each column."""
    packed = np.packbits(cost == 0, axis=1, bitorder='little')
    return [int.from_bytes(row, 'little') for row in packed]


def smallest_step(cost, covered, open_columns):
    """Makes the smallest uncovered cost a zero; changes `cost` and returns it.

    Covered rows rise and open columns fall by it, one after the other, since the rounding counts.
    """
    rows = np.array(covered)
    columns = np.array([open_columns >> k & 1 for k in range(len(cost))], bool)
    smallest = cost[np.ix_(~rows, columns)].min()
    cost[rows] += smallest
    cost[:, columns] -= smallest
    return cost
