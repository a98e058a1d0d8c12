// The ops, each in a file of its name. A kernel for another device is registered beside these.
#pragma once

namespace kerasdet {

void RegisterNms();
void RegisterRoiAlign();
void RegisterDeformConv();
void RegisterMasks();

}  // namespace kerasdet
