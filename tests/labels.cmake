# Read by ctest, once it knows the tests. Each test gets two labels: its layer, and a kind by the first pattern that its
# name matches.
set(kinds gpu slow golden mutation invariant unit)
set(pattern_gpu "^Cuda|/Cuda")
set(pattern_slow "LongRun")
set(pattern_golden "Golden")
set(pattern_mutation "^Mutation")
set(pattern_invariant "Changes?NoBit|ChangeABit|ChangesNothing|BitsDepend|DoNotDepend|Bitwise|AsManySteps|AsInvariant")
set(pattern_unit ".")

foreach(layer core ops io model train engine cli)
  foreach(test ${test_${layer}_TESTS})
    foreach(kind ${kinds})
      if(test MATCHES "${pattern_${kind}}")
        set_tests_properties("${test}" PROPERTIES LABELS "${layer};${kind}")
        if(kind STREQUAL gpu)  # one after the other: some use up the card's memory
          set_tests_properties("${test}" PROPERTIES RESOURCE_LOCK gpu)
        endif()
        break()
      endif()
    endforeach()
  endforeach()
endforeach()
